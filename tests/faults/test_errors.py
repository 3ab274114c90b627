"""A disk that refuses: full, read-only, over quota or broken, at any change, once or for good."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamtune import fsops
from dreamtune.errors import Resources
from dreamtune.store import Store
from tests.faults import some, tape
from tests.faults.job import Promised, job, taped, violations
from tests.faults.tape import Op

CODES = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS]


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_what_was_there_stays_and_the_job_goes_on_when_there_is_room(
    tmp_path: Path, for_good: bool
) -> None:
    ops, ids = taped(tmp_path / "calm")
    changes = sum(op[0] != "mark" for op in ops)
    cases = [(n, code) for n in range(1, changes + 1) for code in CODES]
    for number, code in some(cases, 30):
        store = Store(fsops.make_folder(tmp_path / "store"))
        promised = refused(store, tape.failing(number, code, for_good), code)
        assert not violations(store.path, promised), (number, code)
        assert job(store) == ids, (number, code)
        assert not any(store.verify(deep=True).values()), (number, code)
        shutil.rmtree(store.path)


def refused(store: Store, fail: Callable[[Op], None], code: int) -> Promised:
    """Run the job into the error; what it had promised by then."""
    ops: list[Op] = []
    with tape.watch(store.path, before=fail):
        try:
            job(store, ops.append)
        except Resources as e:
            assert e.code == 15
            assert code not in fsops._FULL or ("bytes needed" in str(e) and "free" in str(e))
    promised = Promised.after(ops, len(ops))
    promised.newest = set()  # a version may be finished whose line in the journal did not fit
    return promised
