"""How low-rank an update ΔW is: singular values, ranks, noise floors, subspaces.

    for update in updates_of_adapter(adapter, base=base, roles={}, skipped={}):
        spectrum = measure(update, method="gram")
        print(spectrum.module, row(spectrum)["energy_rank_90"], row(spectrum)["resolvable"])

Knows nothing of training.
"""
