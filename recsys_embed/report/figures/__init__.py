"""The figures, as SVG that takes its colours and fonts from the page around it: a module each, with ``draw``.

Everything is drawn in stand-in colours, which are then replaced by CSS variables: so one figure serves light, dark and
print. Lines are labelled at their ends. matplotlib is imported when the first figure is drawn, without a back end for
windows and without touching the caller's settings.
"""
