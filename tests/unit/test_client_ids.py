from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from onexflow.client.ids import instance_uuid, new_request_id
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import read_uuid, uuid_text


def test_request_ids_are_distinct_uuid7_in_order() -> None:
    made = [new_request_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {(UUID(one).version, UUID(one).variant) for one in made} == {(7, UUID(made[0]).variant)}
    assert [one[:13] for one in made] == sorted(one[:13] for one in made)


def test_instance_ids_are_uuids_or_become_one() -> None:
    known = uuid4()
    assert instance_uuid(known) == instance_uuid(str(known)) == known
    assert instance_uuid("ORD-12345") == instance_uuid("ORD-12345") != instance_uuid("ORD-12346")
    with pytest.raises(InvalidArgument):
        instance_uuid("")


@pytest.mark.parametrize("form", ["{}", "{{{}}}", "urn:uuid:{}", "x{}", "", " {}", "{}é"])
def test_ids_are_read_and_written_as_python_does(form: str) -> None:
    for known in (uuid4(), UUID(new_request_id()), UUID(int=0)):
        assert uuid_text(known) == str(known)
        for text in (str(known), str(known).upper(), known.hex, str(known).replace("-", "", 1)):
            given = form.format(text)
            try:
                expected = UUID(given)
            except ValueError:
                with pytest.raises(ValueError, match="badly formed"):
                    read_uuid(given)
            else:
                assert read_uuid(given) == expected
