def scenes(bench, targets): return []
def counted(*_): pass
