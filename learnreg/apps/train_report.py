"""placeholder"""
def report(config, data, folder): pass
