"""What a test host finds in its ``/etc``, and how it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NETWORK = "10.77.0"
USER = "trainer"  # on every host, beside root
USER_ID = 1234

BOOT = """
hostname {name}
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/lock
for file in hosts hostname resolv.conf passwd group; do mount --bind {etc}/$file /etc/$file; done
mount --bind {etc}/ssh /etc/ssh
# Others may enter root's home, where Python may live, and read nothing else there than what it lets them.
# Start files of shells are left out: they may be slow, and take locks that outlive a host switched off.
mkdir /run/root && mount --bind /root /run/root && mount -t tmpfs -o mode=755 tmpfs /root
for path in /run/root/* /run/root/.[!.]*; do
  case $path in */.bashrc | */.bash_* | */.profile | */.login | */.cshrc | */.zsh*) continue ;; esac
  [ -e "$path" ] || continue
  to=/root/${{path##*/}}
  if [ -d "$path" ]; then mkdir "$to"; else touch "$to"; fi
  mount --bind "$path" "$to"
done
mkdir -p /root/.ssh && mount -t tmpfs -o mode=700 tmpfs /root/.ssh
mount -t tmpfs -o mode=755 tmpfs /home
mkdir -p /home/trainer && chown 1234:1234 /home/trainer
touch "$1"
exec /usr/sbin/sshd -D -e
"""


def write_etc(folder: Path, keys: Path, number: int, own_address: str | None, sshd: str) -> None:
    """Write the files of a host's ``/etc`` that differ from the machine's; the keys lie in ``keys``."""
    name, ssh = f"host{number}", folder / "ssh"
    shutil.rmtree(folder, ignore_errors=True)
    ssh.mkdir(parents=True)
    lines = ["127.0.0.1 localhost"]
    for i in range(1, 33):
        address = own_address if own_address and i == number else f"{NETWORK}.{10 + i}"
        lines.append(f"{address} host{i}")
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "hostname").write_text(name + "\n")
    (folder / "resolv.conf").write_text("")  # no name server: unknown names fail at once
    entry = f"{USER}:*:{USER_ID}:{USER_ID}:{USER}:/home/{USER}:/bin/bash\n"
    (folder / "passwd").write_text(Path("/etc/passwd").read_text() + entry)
    (folder / "group").write_text(Path("/etc/group").read_text() + f"{USER}:x:{USER_ID}:\n")
    for key in ("user_key", "host_key"):
        shutil.copy(keys / key, ssh / key)
    shutil.copy(keys / "user_key.pub", ssh / "authorized_keys")
    # ssh refuses a private key that others can read, unless it is someone else's: each user has a copy.
    shutil.copy(keys / "user_key", ssh / f"user_key.{USER}")
    os.chown(ssh / f"user_key.{USER}", USER_ID, USER_ID)
    (ssh / "sshd_config").write_text(_SSHD + sshd)
    (ssh / "ssh_config").write_text(_SSH.format(network=NETWORK, user=USER))


_SSHD = """
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
MaxStartups 200:30:400
PidFile none
PrintMotd no
AcceptEnv LANG LC_*
"""
_SSH = """
Match host "host*,{network}.*,localhost" localuser {user}
  IdentityFile /etc/ssh/user_key.{user}
Match host "host*,{network}.*,localhost" localuser root
  IdentityFile /etc/ssh/user_key
Host *
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
  ConnectTimeout 5
"""
