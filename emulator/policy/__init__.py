"""NetworkPolicy and its kin: who may talk to whom, and what each real system makes of that.

``model`` is the form that all of it is brought into, ``networkpolicy`` and its siblings bring it there, ``compiled``
holds who is selected by what, ``compile`` keeps that up to date, and ``evaluate`` says what the specification expects
of a flow. An enforcer (``model.Enforcer``), one module for each real system, makes plan objects of it. Pure.
"""
