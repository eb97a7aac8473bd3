# Packs the model once: the pod that holds the lock does it, the others find it done. A pack is named for what it is made
# from, so another model, card or version gets another.
set -eu
umask 022
folder=$MODEL
[ -d "$MODEL" ] || folder=$(dirname "$MODEL")
# A mounted ConfigMap keeps its files a second time under ..data.
digest=$(cd "$folder" && find -L . -name '..?*' -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-32)
pack=/packs/$VERSION-$(basename "$MODEL")-$digest
exec 9>/packs/.lock
flock 9
[ -z "${PTHSERVE_REQUIRE_SIGNATURE:-}" ] || pthserve verify "$MODEL" --key "$PTHSERVE_REQUIRE_SIGNATURE"
if [ ! -d "$pack" ]; then
  rm -rf "$pack.part"
  pthserve pack "$MODEL" -o "$pack.part"
  mv "$pack.part" "$pack"
fi
ln -sfn "$pack" /pack/model
