#!/usr/bin/env bash
# Register two made images: containers/check.sh docker run --rm -v "$PWD:/work" learnreg
# The arguments are the command that takes those of learnreg, with this folder as its working directory.
set -euo pipefail
folder=$(mktemp -d "$PWD/.check-XXXX")
chmod 777 "$folder"
trap 'rm -rf "$folder"' EXIT
name=$(basename "$folder")
python3 - "$folder" <<'PYTHON'
import gzip
import struct
import sys

# Two NIfTI balls of 24^3 voxels, 2 voxels apart, without any package.
for name, shift in (("fixed", 0), ("moving", 2)):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 24, 24, 24, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)  # float32
    struct.pack_into("<8f", header, 76, 1, 2, 2, 2, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<f", header, 112, 1)
    struct.pack_into("<2h", header, 252, 0, 1)
    for row in range(3):
        struct.pack_into("<4f", header, 280 + 16 * row, *(2.0 * (row == column) for column in range(3)), -23.0)
    header[344:348] = b"n+1\0"
    values = [
        1.0 / (1 + max(0.0, ((x - 12 - shift) ** 2 + (y - 12) ** 2 + (z - 12) ** 2) - 25))
        for z in range(24) for y in range(24) for x in range(24)
    ]
    with gzip.open(f"{sys.argv[1]}/{name}.nii.gz", "wb") as file:
        file.write(bytes(header) + struct.pack(f"<{len(values)}f", *values))
PYTHON
"$@" register "$name/fixed.nii.gz" "$name/moving.nii.gz" -o "$name/out" --method rigid
test -s "$folder/out/transform.h5"
