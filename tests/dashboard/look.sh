#!/bin/sh
# The dashboard in a real browser: a small cluster under load, its page in headless Chromium, light and dark, on a
# desk and on a phone. Looks into the page that the browser made, and leaves pictures to be looked at:
#
#   sh tests/dashboard/look.sh BIN OUT         BIN: folder of the programs, OUT: where the pictures go
#   sh tests/dashboard/look.sh BIN OUT all     a cluster without work, and one that has lost a rank, too
#
# Needs Debian's chromium; without it the test is skipped (77).
set -eu
BIN=$(cd "$1" && pwd)
mkdir -p "$2"
OUT=$(cd "$2" && pwd)
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
command -v chromium >/dev/null || {
    echo "skipped: no chromium (apt-get install chromium)"
    exit 77
}
DIR=$(mktemp -d)
export AFD_STATE="$DIR/state" HOME="$DIR"
finish() {
    touch "$DIR/stop"
    "$BIN/afd" down --state "$AFD_STATE" >/dev/null 2>&1 || true
    wait
    rm -rf "$DIR"
}
trap finish EXIT
fail() {
    echo "look.sh: $*" >&2
    exit 1
}

# A name that is markup must stay a name: the model is called by its folder's.
NAME='<img src=x onerror=alert(1)>'
cp -r "$ROOT/model/nano" "$DIR/$NAME"
sed -e 's/127\.0\.0\.1:[0-9]*/127.0.0.1:0/' -e "s#path: \.\./\.\./model/nano *#path: \"$DIR/$NAME\" #" \
    "$ROOT/deploy/topologies/2a2f-local.yaml" >"$DIR/topology.yaml"
"$BIN/afd" up "$DIR/topology.yaml" --state "$AFD_STATE" --timeout 120 >"$DIR/up.log" 2>&1 || fail "$(cat "$DIR/up.log")"
URL=$(sed 's/.*"http":"\([^"]*\)".*/http:\/\/\1/' "$AFD_STATE/scheduler.json")
# browse MODE SIZE WHAT...: the page after some seconds of its own time
browse() {
    dark=
    [ "$1" = dark ] && dark="--blink-settings=preferredColorScheme=0"
    size=$2
    shift 2
    timeout 120 chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars $dark \
        --user-data-dir="$DIR/browser" --window-size="$size" --virtual-time-budget=15000 "$@" "$URL/" 2>"$DIR/browser.log"
}
WHAT=${3:-}
[ "$WHAT" != all ] || browse light 1280,1080 --screenshot="$OUT/dashboard-idle.png"
for i in 1 2 3 4 5 6; do
    (while [ ! -e "$DIR/stop" ]; do
        "$BIN/afd" complete --state "$AFD_STATE" --max-tokens 300 --temperature 0.9 --seed $i "ROMEO:" >/dev/null 2>&1 || sleep 1
    done) &
done

browse light 1280,1000 --dump-dom >"$DIR/page.html" || fail "$(tail -5 "$DIR/browser.log")"
expect() { grep -q "$1" "$DIR/page.html" || fail "the page has no $2"; }
expect 'class="chip good">ready' "state"
expect '&lt;img src=x onerror=alert(1)&gt;' "name of the model as text"
for rank in attn/0 attn/1 ffn/0 ffn/1; do expect "$rank" "rank $rank"; done
expect 'class="tile"' "figures"
expect '<rect class="compute"' "picture of the pipeline"
expect '<line class="a2f"' "message in the picture of the pipeline"
expect '<path class="one"' "curve"
expect 'times, layer' "words on the experts"
expect 'requests can run' "event"
grep -q 'id="alert"[^>]*>no answer' "$DIR/page.html" && fail "the page got no answer"
grep -q '<img src' "$DIR/page.html" && fail "a name became markup"
grep -qi 'Content Security Policy' "$DIR/browser.log" && fail "the page breaks its own policy: $(tail -3 "$DIR/browser.log")"
browse light 1280,1080 --screenshot="$OUT/dashboard.png"
browse dark 1280,1080 --screenshot="$OUT/dashboard-dark.png"
# headless windows are 500 wide at least: a phone is drawn as a page of its width
browse light 500,2000 --screenshot="$OUT/dashboard-phone.png"
if [ "$WHAT" = all ]; then
    STOPPED=$("$BIN/afd" ps --state "$AFD_STATE" | awk '$1 == "ffn/1" {print $3}')
    kill -STOP "$STOPPED" # it is silent, and its lease ends
    until "$BIN/afd" status --state "$AFD_STATE" | grep -q '^degraded: '; do sleep 0.2; done
    browse dark 1280,1080 --screenshot="$OUT/dashboard-lost.png"
    kill -CONT "$STOPPED"
fi
for picture in dashboard dashboard-dark dashboard-phone; do [ -s "$OUT/$picture.png" ] || fail "no $picture.png"; done
echo "look.sh: the page is as it should be; pictures in $OUT"
