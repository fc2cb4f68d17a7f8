"""ModelService: what is served, text to ids and back, and how busy the server is."""

from typing import TypeVar

from google.protobuf.message import Message

from reformer.v1 import model_pb2 as pb
from reformer.v1.model_pb2_grpc import ModelServiceServicer
from reformer_server import validation
from reformer_server.calls import Context
from reformer_server.content import Encoder
from reformer_server.errors import InvalidFieldError
from reformer_server.load import Load
from reformer_server.served_model import ServedModel
from reformer_server.settings import Settings
from reformer_server.version import VERSION

MAX_RESPONSE_BYTES = (1 << 20) - 1024  # what a message may hold, less a little for its frame

Response = TypeVar("Response", bound=Message)


class ModelService(ModelServiceServicer):
    """One method an RPC."""

    def __init__(self, settings: Settings, model: ServedModel, encoder: Encoder, load: Load) -> None:
        self._settings = settings
        self._model = model
        self._encoder = encoder
        self._load = load

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """The model and the server's limits."""
        model, pixels = self._model.model, self._model.pixels
        return pb.GetModelResponse(
            name=self._model.name,
            server_version=VERSION,
            max_tokens=self._model.max_tokens,
            vocab_size=self._model.vocab_size,
            parameters=model.num_parameters,
            device=model.device.type,
            dtype=str(model.dtype).removeprefix("torch."),
            num_hashes=model.config.num_hashes,
            weights_digest=model.weights_digest,
            max_content_bytes=self._settings.max_content_bytes,
            max_lease_seconds=int(self._settings.max_lease_seconds),
            tokenizer=self._model.tokenizer.kind,
            picture_height=pixels.height if pixels else 0,
            picture_width=pixels.width if pixels else 0,
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Text or a picture to ids."""
        if request.HasField("image"):
            return await self._tokenize_picture(request.image)
        size = len(request.text.encode())
        if size > validation.MAX_TOKENIZE_BYTES:
            raise InvalidFieldError(
                "text", f"must be at most {validation.MAX_TOKENIZE_BYTES:,} bytes of UTF-8, but is {size:,}"
            )
        [ids] = await self._encoder.texts({"text": request.text})
        return _fitting(pb.TokenizeResponse(ids=ids.tolist()), "text")

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        """Ids to text or to a picture."""
        count = len(request.token_ids.ids)
        if count > validation.MAX_DETOKENIZE_IDS:
            raise InvalidFieldError(
                "token_ids.ids", f"must be at most {validation.MAX_DETOKENIZE_IDS:,}, but are {count:,}"
            )
        ids = validation.token_ids(request.token_ids.ids, "token_ids.ids", self._model.vocab_size)
        if self._model.pixels is not None:
            columns = validation.columns(request)
            response = pb.DetokenizeResponse(png=await self._encoder.png(ids.tolist(), columns))
        else:
            response = pb.DetokenizeResponse(text=await self._encoder.decode(ids.tolist()))
        return _fitting(response, "token_ids.ids")

    async def _tokenize_picture(self, image: pb.Image) -> pb.TokenizeResponse:
        size = len(image.data)
        if size > validation.MAX_TOKENIZE_IMAGE_BYTES:
            raise InvalidFieldError(
                "image.data", f"must be at most {validation.MAX_TOKENIZE_IMAGE_BYTES:,} bytes, but is {size:,}"
            )
        picture = await self._encoder.picture(image.data, resize=image.resize)
        return _fitting(pb.TokenizeResponse(ids=picture.token_ids.tolist(), notes=picture.notes), "image.data")

    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        """How busy the server is."""
        return self._load.message()


def _fitting(response: Response, field: str) -> Response:
    if response.ByteSize() > MAX_RESPONSE_BYTES:
        raise InvalidFieldError(field, "gives more than fits into one message of 1 MiB; send it in parts")
    return response
