#!/bin/sh
# The units of `afd render systemd`, as systemd reads them. Guards: an unknown or misplaced setting, a unit that wants
# one which is not there. Nothing is installed or started.
set -eu
cd "$(dirname "$0")/../.."
command -v systemd-analyze >/dev/null || { echo "skipped: no systemd-analyze (Debian: systemd)"; exit 77; }
D=$(mktemp -d /tmp/afd-l-XXXXXX)
trap 'rm -rf "$D"' EXIT
cat >"$D/t.yaml" <<END
cluster: l
model: { path: /models/m }
scheduler: { host: a, http: "0.0.0.0:8000", control: "0.0.0.0:7070", drain_s: 20 }
pools:
  attn: { instances: 2, hosts: [a, b] }
  ffn: { instances: 1, ranks_per_instance: 2, hosts: [b] }
END
"$BUILD/bin/afd" render systemd "$D/t.yaml" -o "$D/units" --bin "$BUILD/bin"
check() { # HOST RANKS_OF_TARGET
    wants=$(sed -n 's/^Wants=afd-l-//p' "$D/units/$1/afd-l.target" | tr '\n' ' ')
    [ "$wants" = "$2 " ] || { echo "host $1 wants: $wants"; exit 1; }
    # --recursive-errors=no: of these files alone; the system's own units are not ours to judge
    for unit in "$D/units/$1"/*; do
        case $unit in
        *@.service) file=$(dirname "$unit")/$(basename "$unit" @.service)@1.service && cp "$unit" "$file" ;;
        *) file=$unit ;;
        esac
        said=$(SYSTEMD_UNIT_PATH="$D/units/$1:" systemd-analyze verify --man=no --recursive-errors=no "$file" 2>&1) ||
            { echo "$file: $said"; exit 1; }
        ! printf '%s' "$said" | grep "$D" || exit 1
    done
}
check a 'scheduler.service attn@0.service'
check b 'attn@1.service ffn@0.service ffn@1.service'
grep -q '^LoadCredential=secret:/etc/afd/l/secret' "$D/units/b/afd-l-ffn@.service"
grep -q '^ExecStart=.*--secret-file %d/secret --rank %i --scheduler a:7070' "$D/units/b/afd-l-ffn@.service"
[ ! -e "$D/units/b/afd-l-scheduler.service" ] || { echo "host b has a scheduler"; exit 1; }
