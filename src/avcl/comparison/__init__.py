"""Rank systems on the same data, honestly: every one trained in its own process under the same rules and budget.

``study`` the whole path (``avcl.compare``) · ``plan`` what is compared and how · ``worker``, ``job``, ``runner`` one
process for each system and seed · ``tuning`` settings chosen on the validation split · ``statistics`` what may be said
of the differences · ``tables``, ``page`` how it is shown · ``published`` the papers' order.
"""
