"""The contract: its generated code is up to date, and buf's rules hold."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2

ROOT = Path(__file__).parents[2]


def test_generated_code_is_what_the_proto_files_give() -> None:
    assert runpy.run_path(str(ROOT / "protos/generate.py"))["stale_files"]() == []


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]])
def test_buf_is_content(command: list[str]) -> None:
    buf = Path(sys.executable).with_name("buf")
    result = subprocess.run([buf, *command], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_rpc_is_in_a_service() -> None:
    rpcs = {
        f"{service.name}.{method.name}"
        for module in (admin_pb2, document_pb2, inference_pb2, model_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert rpcs == {
        "AdminService.Drain",
        "AdminService.ListAllDocuments",
        "DocumentService.CreateDocument",
        "DocumentService.GetDocument",
        "DocumentService.ListDocuments",
        "DocumentService.RenewDocument",
        "DocumentService.DeleteDocument",
        "DocumentService.ReadDocumentScores",
        "InferenceService.Generate",
        "InferenceService.Score",
        "InferenceService.ScoreContinuations",
        "ModelService.GetModel",
        "ModelService.Tokenize",
        "ModelService.Detokenize",
        "ModelService.GetLoad",
    }


def test_sampling_parameters_tell_zero_from_unset() -> None:
    for field in inference_pb2.SamplingParams.DESCRIPTOR.fields:
        assert field.has_presence or field.is_repeated or field.type == FieldDescriptor.TYPE_MESSAGE, field.name
