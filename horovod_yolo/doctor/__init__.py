"""What keeps hosts from training together: looked at on each host, compared, and said in one line each."""
