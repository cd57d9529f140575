"""Edits of Horovod 0.28.1 that close the door of a job over Gloo, for `horovod_edits`: file, old, new, why.

The rendezvous, at which ranks find each other, listened on all interfaces without a password: whoever reached
it could read and overwrite what ranks say there, and an elastic job's driver ran what was written. Now it
listens on loopback where all ranks are here, else on the job's interface, and answers those who know the
job's secret. Ranks here inherit the secret; ranks elsewhere read it from the input of their ssh session. No
command line shows it.
"""

from __future__ import annotations

RENDEZVOUS = (
    (
        "horovod/runner/util/network.py",
        "def find_port(server_factory):\n",
        "def find_port(server_factory, host=''):\n",
        "servers listen on the address that they are told, not on all",
    ),
    (
        "horovod/runner/util/network.py",
        "            addr = ('', port)\n",
        "            addr = (host, port)\n",
        "the other half of it",
    ),
    (
        "horovod/runner/http/http_server.py",
        "    # Override GET handler\n",
        "    def parse_request(self):\n"
        "        if not super().parse_request():\n            return False\n"
        "        key = getattr(self.server, 'key', None)\n"
        "        given = self.headers.get('Authorization', '').encode('utf-8', 'replace')\n"
        "        if key is None or hmac.compare_digest(given, f'Bearer {key}'.encode()):\n"
        "            return True\n"
        "        self.send_status_code(403)\n        return False\n\n"
        "    # Override GET handler\n",
        "whoever reached the port could read and overwrite the job's keys",
    ),
    (
        "horovod/runner/http/http_server.py",
        "import collections\n",
        "import collections\nimport hmac\n",
        "for that comparison",
    ),
    (
        "horovod/runner/http/http_server.py",
        "class RendezvousHTTPServer(socketserver.ThreadingMixIn, HTTPServer, object):\n"
        "    def __init__(self, addr, handler, verbose):\n",
        "class RendezvousHTTPServer(socketserver.ThreadingMixIn, HTTPServer, object):\n"
        "    daemon_threads = True\n\n"
        "    def server_bind(self):\n"
        "        socketserver.TCPServer.server_bind(self)\n"
        "        self.server_name, self.server_port = self.server_address[:2]\n\n"
        "    def __init__(self, addr, handler, verbose, key=None):\n        self.key = key\n",
        "no look-up in DNS, no wait for a stranger's connection at the end, and the job's secret",
    ),
    (
        "horovod/runner/http/http_server.py",
        "class RendezvousServer:\n    def __init__(self, verbose=0):\n",
        "class RendezvousServer:\n    def __init__(self, verbose=0, host='', key=None):\n"
        "        self._host = host\n        self._key = key\n",
        "where it listens, and the job's secret",
    ),
    (
        "horovod/runner/http/http_server.py",
        "            lambda addr: RendezvousHTTPServer(\n"
        "                addr, handler_cls, self._verbose))\n",
        "            lambda addr: RendezvousHTTPServer(\n"
        "                addr, handler_cls, self._verbose, self._key), self._host)\n",
        "hands them on",
    ),
    (
        "horovod/runner/http/http_client.py",
        "        req = Request(url)\n",
        "        req = Request(url, headers=_authorization())\n",
        "reads with the job's secret",
    ),
    (
        "horovod/runner/http/http_client.py",
        "        req = Request(url, data=codec.dumps_base64(value, to_ascii=False))\n",
        "        req = Request(url, data=codec.dumps_base64(value, to_ascii=False),\n"
        "                      headers=_authorization())\n",
        "writes with the job's secret",
    ),
    (
        "horovod/runner/http/http_client.py",
        "from horovod.runner.common.util import codec\n",
        "from horovod.runner.common.util import codec\n"
        "from horovod.runner.common.util.env import RENDEZVOUS_KEY\n\n\n"
        "def _authorization():\n"
        "    key = os.environ.get(RENDEZVOUS_KEY)\n"
        "    return {'Authorization': f'Bearer {key}'} if key else {}\n",
        "where a worker finds it",
    ),
    (
        "horovod/runner/http/http_client.py",
        "from urllib.error import HTTPError, URLError\n",
        "import os\n\nfrom urllib.error import HTTPError, URLError\n",
        "for that",
    ),
    (
        "horovod/runner/common/util/env.py",
        "IGNORE_REGEXES = {'BASH_FUNC_.*', 'OLDPWD', '.*CUDA_VISIBLE_DEVICES', secret.HOROVOD_SECRET_KEY}\n",
        "RENDEZVOUS_KEY = 'HOROVOD_RENDEZVOUS_KEY'\n"
        "IGNORE_REGEXES = {'BASH_FUNC_.*', 'OLDPWD', '.*CUDA_VISIBLE_DEVICES', secret.HOROVOD_SECRET_KEY,\n"
        "                  RENDEZVOUS_KEY}\n",
        "the job's secret is not written into command lines, which others see",
    ),
    (
        "horovod/common/gloo/http_store.cc",
        "      http::Response response = request.send(method, body);\n",
        "      std::vector<std::string> headers;\n"
        '      if (const char* key = std::getenv("HOROVOD_RENDEZVOUS_KEY")) {\n'
        '        headers.push_back(std::string("Authorization: Bearer ") + key);\n'
        "      }\n"
        "      http::Response response = request.send(method, body, headers);\n",
        "the ranks' own way to the rendezvous",
    ),
    (
        "horovod/common/gloo/http_store.cc",
        "#include <cstring>\n",
        "#include <cstdlib>\n#include <cstring>\n",
        "for getenv",
    ),
    (
        "horovod/runner/gloo_run.py",
        "    # start global rendezvous server and get port that it is listening on\n"
        "    rendezvous = RendezvousServer(settings.verbose)\n",
        "    rendezvous = RendezvousServer(settings.verbose, server_ip, _job_key())\n",
        "the rendezvous of a job listens where its ranks look for it, and asks for the job's secret",
    ),
    (
        "horovod/runner/gloo_run.py",
        "    exec_command = _exec_command_fn(settings)\n"
        "    rendezvous = RendezvousServer(settings.verbose)\n",
        "    host = network.get_driver_ip(settings.nics) if settings.nics else ''\n"
        "    rendezvous = RendezvousServer(settings.verbose, host, _job_key())\n"
        "    exec_command = _exec_command_fn(settings)\n",
        "the same of an elastic job, whose driver would run what a stranger writes there",
    ),
    (
        "horovod/runner/gloo_run.py",
        "def create_slot_env_vars(slot_info):\n",
        "def _job_key():\n"
        "    os.environ[env_util.RENDEZVOUS_KEY] = secrets.token_hex(16)\n"
        "    return os.environ[env_util.RENDEZVOUS_KEY]\n\n\n"
        "def create_slot_env_vars(slot_info):\n",
        "a new secret for each job; workers here inherit it",
    ),
    (
        "horovod/runner/gloo_run.py",
        "import os\nimport signal\n",
        "import os\nimport secrets\nimport signal\n",
        "for that",
    ),
    (
        "horovod/runner/gloo_run.py",
        "            local_command = quote('cd {pwd} > /dev/null 2>&1 ; {command}'\n"
        "                                  .format(pwd=os.getcwd(), command=command))\n",
        "            key = env_util.RENDEZVOUS_KEY\n"
        "            script = quote(f'cd {quote(os.getcwd())} > /dev/null 2>&1 ; exec {command}')\n"
        "            local_command = quote(\n"
        "                f'exec sh -c \\'IFS= read -r {key} && export {key} && eval \"$(cat)\"\\'')\n",
        "a worker elsewhere gets secret and command as input, whatever its login shell",
    ),
    (
        "horovod/runner/gloo_run.py",
        "                                         identity_file=settings.ssh_identity_file)\n",
        "                                         identity_file=settings.ssh_identity_file)\n"
        '            command = f\'printf "%s\\\\n" "${key}" {script} | {command}\'\n',
        "by a word of the shell itself, which is in no list of processes",
    ),
    (
        "horovod/runner/common/util/network.py",
        "        message_len = struct.unpack('i', rfile.read(4))[0]\n"
        "        message = rfile.read(message_len)\n"
        "        if not secret.check_digest(self._key, message, digest):\n"
        "            raise Exception('Security error: digest did not match the message.')\n",
        "        length = rfile.read(4)\n"
        "        message_len = struct.unpack('i', length)[0] if len(length) == 4 else -1\n"
        "        if not 0 <= message_len <= 1 << 26:\n"
        "            raise EOFError('no message of this job')\n"
        "        message = rfile.read(message_len)\n"
        "        if not secret.check_digest(self._key, message, digest):\n"
        "            raise EOFError('Security error: digest did not match the message.')\n",
        "a stranger could make it wait for 2 GB, and fill the log with tracebacks",
    ),
    (
        "horovod/runner/common/util/network.py",
        "        class _Handler(socketserver.StreamRequestHandler):\n",
        "        class _Handler(socketserver.StreamRequestHandler):\n            timeout = 30\n\n",
        "a connection that says nothing kept the process from ending",
    ),
    (
        "horovod/runner/common/util/network.py",
        "                except (EOFError, BrokenPipeError):\n",
        "                except (EOFError, BrokenPipeError, ConnectionError, socket.timeout):\n",
        "strangers leave as they like",
    ),
    (
        "horovod/runner/common/util/network.py",
        "                addr, self._make_handler()))\n        self._server._block_on_close = True\n",
        "                addr, self._make_handler()), self._own_address())\n"
        "        self._server.daemon_threads = True\n"
        "        self._answering = weakref.WeakSet()\n",
        "a service listens on its one interface, and outlives no process",
    ),
    (
        "horovod/runner/common/util/network.py",
        "                    req = server._wire.read(self.rfile)\n",
        "                    req = server._wire.read(self.rfile)\n"
        "                    server._answering.add(threading.current_thread())\n",
        "threads that answer this job, unlike those that wait for what a stranger says",
    ),
    (
        "horovod/runner/common/util/network.py",
        "        self._server.server_close()\n        self._thread.join()\n",
        "        self._server.server_close()\n        self._thread.join()\n"
        "        for thread in list(self._answering):\n            thread.join()\n",
        "a process that ended before its last answer was written ended the launcher of the whole job",
    ),
    (
        "horovod/runner/common/util/network.py",
        "import socketserver\nimport struct\n",
        "import socketserver\nimport struct\nimport threading\nimport weakref\n",
        "for that",
    ),
    (
        "horovod/runner/common/util/network.py",
        "    def _get_local_addresses(self):\n",
        "    def _own_address(self):\n"
        "        nics = [self._nics] if isinstance(self._nics, str) else list(self._nics or [])\n"
        "        found = [addr.address for nic in nics for addr in psutil.net_if_addrs().get(nic, [])\n"
        "                 if addr.family == socket.AF_INET]\n"
        "        return found[0] if len(found) == 1 else ''\n\n"
        "    def _get_local_addresses(self):\n",
        "which that is",
    ),
    (
        "horovod/runner/driver/driver_service.py",
        "            nics = _driver_fn(all_host_names, local_host_names, settings, fn_cache=fn_cache)\n",
        "            nics = _driver_fn(all_host_names, local_host_names, settings, fn_cache=fn_cache)\n"
        "            nics = nics - network.get_local_intfs() or nics\n",
        "one host alone reaches itself by lo, where horovodrun on another host cannot be reached",
    ),
    (
        "horovod/runner/driver/driver_service.py",
        "                    .format(host_output=host_output.getvalue()))\n"
        "                os._exit(exit_code)\n",
        "                    .format(host_output=host_output.getvalue()), flush=True)\n"
        "                os._exit(exit_code)\n",
        "into a pipe or file nothing was printed of why the launcher ended",
    ),
)
