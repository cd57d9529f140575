#!/usr/bin/env bash
# sshd of a container, without root: through it the job's first container starts ranks in this one.
#
#   docker run -d ... -v "$PWD/keys":/home/trainer/.ssh:ro horovod-yolo:gpu /opt/horovod_yolo/docker/sshd.sh
#
# Whoever has a key of ~/.ssh/authorized_keys comes in, as this container's user. The port is $SSHD_PORT, else 2222.
# The host key is made here at every start and is gone with the container.
# Exit code 2: something is missing (one line says what).
set -euo pipefail

missing() {
  printf 'sshd.sh: %s\n' "$*" >&2
  exit 2
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
port=${SSHD_PORT:-2222}
[[ $port =~ ^[0-9]{1,5}$ ]] || missing "SSHD_PORT is '$port', which is no port. Leave it out for 2222"

# ssh and sshd look into this file, whatever $HOME says.
entry=$(getent passwd "$(id -u)") ||
  missing "user $(id -u) is not in /etc/passwd. Build the image with --build-arg UID=$(id -u)"
home=$(cut -d : -f 6 <<<"$entry")
[[ -r $home/.ssh/authorized_keys ]] ||
  missing "no readable $home/.ssh/authorized_keys. Mount a key pair there: docker/README.md, 'Two nodes'"

sshd=$(PATH=$PATH:/usr/sbin command -v sshd) || missing "no sshd. Install it: apt-get install openssh-server"
keys=$(mktemp -d)
ssh-keygen -q -t ed25519 -N '' -f "$keys/host_key"

# Ranks that are started over ssh get this container's programs and libraries.
environment="PATH=$PATH"
[[ -z ${LD_LIBRARY_PATH:-} ]] || environment+=" LD_LIBRARY_PATH=$LD_LIBRARY_PATH"
exec "$sshd" -D -e -f "$here/sshd_config" -o "HostKey=$keys/host_key" -o "Port=$port" -o "SetEnv=$environment"
