"""Progressive delivery: the state machine of a RolloutPolicy and the statistics that judge a canary.

Pure: no sockets, clocks or tasks. `machine.step(state, event, now_s) -> (state, effects)` decides, `evidence.Evidence`
collects what requests became of, `analysis.analyse` turns it into verdicts; `pointsman.app.rollouts` wires them.
"""
