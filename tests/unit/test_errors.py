import inspect
import pickle
import re

import pytest

from models import errors
from models.errors import SwitchyardError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, SwitchyardError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_a_hop_with_all_its_fields(cls):
    error = cls("Do this next.", "messages", 1.5, {"limit": 7})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert vars(again) == vars(error)
    assert (again.args, str(again)) == (("Do this next.",), "Do this next.")
    assert (again.code, again.http_status, again.retryable) == (cls.code, cls.http_status, cls.retryable)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn = re.findall(r"^ {4}([│├└─ ]*)(\w+)(?: +(\d{3}))?", errors.__doc__, re.MULTILINE)
    parents = []
    tree = {}
    for branch, name, status in drawn:
        depth = len(branch) // 4
        parents[depth:] = [name]
        tree[name] = (parents[depth - 1] if depth else "Exception", int(status) if status else None)
    assert tree.keys() == {cls.__name__ for cls in CLASSES}
    for cls in CLASSES:
        parent, status = tree[cls.__name__]
        assert cls.__bases__[0].__name__ == parent
        assert status in (cls.http_status, None)


def test_codes_are_distinct_but_for_the_root():
    codes = [cls.code for cls in CLASSES if cls is not SwitchyardError]
    assert len(codes) == len(set(codes))
