"""The report on torchinfo's layer table, for programs; people read torchinfo's own text."""

from __future__ import annotations

from torchinfo import ModelStatistics

from surgery.reports.report import Column, Fact, Report, Table, describe

_LAYERS = (
    Column("name", "layer"),
    Column("type", "type"),
    Column("depth", "depth", "count"),
    Column("input_size", "input"),
    Column("output_size", "output"),
    Column("parameters", "parameters", "count"),
    Column("trainable", "trainable", "count"),
    Column("mult_adds", "multiply-adds", "count"),
)


@describe.register
def _(statistics: ModelStatistics) -> Report:
    return Report(
        "summary",
        "Layers",
        facts=(
            Fact("total", "parameters", statistics.total_params, "count"),
            Fact("trainable", "trainable", statistics.trainable_params, "count"),
            Fact("mult_adds", "multiply-adds", statistics.total_mult_adds, "count"),
            Fact("input_bytes", "input", statistics.total_input, "bytes"),
            Fact("output_bytes", "forward and backward", statistics.total_output_bytes, "bytes"),
            Fact("parameter_bytes", "parameters", statistics.total_param_bytes, "bytes"),
        ),
        tables=(
            Table(
                "layers",
                "Layers",
                _LAYERS,
                tuple(
                    (
                        layer.var_name,
                        layer.class_name,
                        layer.depth,
                        tuple(layer.input_size),
                        tuple(layer.output_size),
                        layer.num_params,
                        layer.trainable_params,
                        layer.macs,
                    )
                    for layer in statistics.summary_list
                ),
            ),
        ),
    )
