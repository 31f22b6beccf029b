# What a run through salt-ssh comes to: its states are rendered before the machine has been sent pillar and files.
wsgi-salt-ssh:
  test.fail_without_changes:
    - name: >-
        wsgi does not run through salt-ssh: install salt-minion on the machine and accept its key, or run salt-call
        --local there
    - comment: Nothing was changed.
