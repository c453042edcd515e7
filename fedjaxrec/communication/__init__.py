"""What travels between a client and the server, in bytes."""

from fedjaxrec.communication.downloads import (
    decode_download,
    dense_upload_bytes,
    download_bytes,
    encode_download,
)
from fedjaxrec.communication.encoding import (
    Layout,
    decode_upload,
    encode_upload,
    wire_bytes,
)
from fedjaxrec.communication.ledger import (
    INDEX_BYTES,
    ClientBytes,
    bytes_by_client,
    bytes_by_round,
    communication_summary,
    make_layout,
    touched_rows,
)

__all__ = [
    'INDEX_BYTES', 'ClientBytes', 'Layout', 'bytes_by_client', 'bytes_by_round',
    'communication_summary', 'decode_download', 'decode_upload',
    'dense_upload_bytes', 'download_bytes', 'encode_download',
    'encode_upload', 'make_layout',
    'touched_rows', 'wire_bytes',
]
