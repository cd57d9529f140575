"""Start a job on several hosts: which hosts, which ranks, which command."""
