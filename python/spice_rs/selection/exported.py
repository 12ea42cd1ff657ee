"""What a selection is written as: files of picks and records, and frames."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy.typing as npt

from spice_rs.frames import Framed

if TYPE_CHECKING:
    from spice_rs.selection.result import Selection


class Exports(Framed):
    """The methods of a `Selection` that write it; the functions behind them are those of `spice_rs.report`."""

    @property
    def _picks(self) -> Selection:
        return cast("Selection", self)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return columns by name, each with an element per pick, in pick order.

        The columns are index and rank (int64), gain, base, epsilon, conflict, score and log_det (float64), overruled
        (bool) and rows_read (int64), with group (as `groups`), cost and relevance (float64) where the selection has them.
        """
        from spice_rs.report import exports

        return exports.pick_columns(self._picks)

    def to_jsonl(
        self, path: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
    ) -> None:
        """Write one JSON object per pick, in pick order; the file appears when it is whole.

        Args:
            path: the file; replaced if it is there. Packed if its name ends in .gz.
            data: what the source was extracted from: each line is then the record, unchanged, plus a key "spice" with
                index, rank, gain, conflict and score. Without it these alone. In a record that is a pick of an earlier
                selection, what was there under "spice" is kept in it as "earlier".
            index_column: as for `spice_rs.select`.

        Raises:
            InvalidInputError: the data lack a picked row or are others, a record has a key "spice" that no selection
                wrote or a value that JSON cannot hold (NaN, Decimal, bytes, …), the name says another format, or no file
                can lie there.
        """
        self._write(path, data, ".jsonl", index_column)

    def to_json(
        self, path: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
    ) -> None:
        """Write what `to_jsonl` writes as one JSON list.

        Args:
            path: the file; replaced if it is there. Packed if its name ends in .gz.
            data: as for `to_jsonl`.
            index_column: as for `spice_rs.select`.

        Raises:
            InvalidInputError: as for `to_jsonl`.
        """
        self._write(path, data, ".json", index_column)

    def to_csv(
        self, path: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
    ) -> None:
        """Write a table in CSV, a line per pick, in pick order, after a line of names.

        Args:
            path: the file; replaced if it is there. Packed if its name ends in .gz.
            data: what the source was extracted from: the columns are then those of the records, plus "spice.index",
                "spice.rank" and so on. Without it they are those of `to_dict`. Text stays as it is: what begins with =, +,
                - or @ is a formula to a spreadsheet that opens the file, and is imported there as text.
            index_column: as for `spice_rs.select`.

        Raises:
            InvalidInputError: as for `to_jsonl`, or a value is neither text nor a number: CSV has no lists.
        """
        self._write(path, data, ".csv", index_column)

    def _write(self, path: str | os.PathLike[str], data: Any, kind: str, index_column: str | None) -> None:
        from spice_rs.report import exports

        exports.write_as(self._picks, path, data, kind, index_column=index_column)

    def to_parquet(
        self, path: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
    ) -> None:
        """Write one row per pick, in pick order, with the settings as JSON in the file's metadata. Needs pyarrow.

        Where the objects of a column differ in their fields, Parquet fills the missing ones with null.

        Args:
            path: the file; replaced if it is there. It appears when it is whole.
            data: what the source was extracted from: the columns are then those of the records, plus a struct "spice".
                Without it they are those of `to_dict`.
            index_column: as for `spice_rs.select`.

        Raises:
            InvalidInputError: pyarrow is not installed, the data lacks a picked row, or a field has values of several
                kinds.
        """
        self._write(path, data, ".parquet", index_column)

    def dataset(self, dataset: Any, *, index_column: str | None = None) -> Any:
        """Return the picked rows of a `datasets.Dataset`, in pick order, as a Dataset.

        Args:
            dataset: what the source was extracted from.
            index_column: as for `spice_rs.select`.

        Raises:
            InvalidInputError: it is something else, or lacks a picked row.
        """
        from spice_rs.report import exports

        return exports.picked_dataset(self._picks, dataset, index_column=index_column)

    def to_llama_factory(
        self,
        folder: str | os.PathLike[str],
        data: Any,
        *,
        name: str = "spice",
        columns: Mapping[str, str] | None = None,
        index_column: str | None = None,
    ) -> str:
        """Write the picks for LLaMA-Factory: NAME.jsonl, and an entry in dataset_info.json beside those that are there.

        The records are written as they are; the entry says which columns and tags LLaMA-Factory reads them by. Only
        descriptions of tools that are no text become JSON text, as it has them. Train with `dataset_dir: FOLDER` and
        `dataset: NAME`; `disable_shuffling: true` keeps the order of the picks. Paths of images are looked up in its
        `media_dir`. A data set that this wrote under the same name is replaced.

        Args:
            folder: LLaMA-Factory's dataset_dir; made if it is not there.
            data: what the source was extracted from.
            name: what the data set is called.
            columns: field → column of the data, as for `extract`: no other columns are then in the entry. By default those
                that the records were extracted by, where they were named. What was ignored then is not in the entry.
            index_column: as for `spice_rs.select`.

        Returns:
            The stage of training that reads such records: "sft", "pt" (plain text), "kto" (a response and whether it is
            wanted) or "dpo" (a chosen and a rejected response).

        Raises:
            InvalidInputError: the data lack a picked row or are others; LLaMA-Factory cannot read the picks, not all they
                say, or not all with one entry; the name is taken by another data set; or dataset_info.json is no JSON.

        Warns:
            SpiceWarning: LLaMA-Factory will skip some of the picks, whose turns do not alternate.
        """
        from spice_rs.report import llama_factory

        return llama_factory.write_llama_factory(
            self._picks, folder, data, name=name, columns=columns, index_column=index_column
        ).stage
