"""The code that torch makes of a batch's noise for a card that is not there: prints what `step_code` prints of a pass.

noise_code.py IMAGES NUMBERS FILE      (the code goes into FILE; `pretended.run` starts it)
"""

import json
import sys
from pathlib import Path

import pretended

pretended.pretend()

import torch  # noqa: E402
from step_code import Code  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from hdit_cli import counter  # noqa: E402


def main(images, numbers, file):
    code = Code()
    run = torch.compile(counter.normals_apart, fullgraph=True, dynamic=False, backend=code.backend)
    with FakeTensorMode():
        run(torch.zeros(int(images), 4, dtype=torch.int64, device="cuda"), int(numbers))
    (text,), (facts,) = code.code.values(), code.passes.values()
    Path(file).write_text(text)
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
