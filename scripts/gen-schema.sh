#!/usr/bin/env bash
# Makes schema/orlop.cgr from schema/orlop.capnp. The only step that needs the `capnp` tool
# (Debian: apt-get install capnproto). Debian 12's version 0.9.2 is canonical: other versions
# write a different request for the same schema.
set -euo pipefail
cd "$(dirname "$0")/../schema"
command -v capnp >/dev/null || { echo "gen-schema.sh: no capnp tool; on Debian: apt-get install capnproto" >&2; exit 1; }
capnp compile -o- orlop.capnp > orlop.cgr.new
mv orlop.cgr.new orlop.cgr
sha256sum orlop.capnp | cut -d' ' -f1 > orlop.capnp.sha256
echo "schema/orlop.cgr: $(wc -c < orlop.cgr) bytes"
