"""Wrappers with the interface of the `ChatModel` they wrap. `stack.py` puts them around a provider's adapter:

    Retrying          a new attempt after a failure that passes, within the retry budget
      Hedged            a second attempt beside a slow one (off by default)
        CircuitBroken     asks a provider that keeps failing only now and then
          KeyRotation       the next key, where one is limited or refused (with several keys)
            TimeBound         no wait without an end
              PlausibleUsage    no count that cannot be
                the adapter

All of it happens before the first event. After it the caller has a part of the answer: whatever goes wrong then is
`StreamInterrupted` (or the deadline), and nothing is switched in silence.
"""
