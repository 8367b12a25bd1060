"""The processes, and who says what to whom.

                              run.py (launcher)
                                     |  starts it, restarts it, SIGTERM = stop
                                     v
      operator  --status, stop-->  supervisor  <--Hello, Beat, Goodbye, RunDone--  everybody
      (run.py status, kill, ...)     |      `----Welcome, PeerUp, PeerDown, Stop-->  everybody
                                     |  Fork
                                     v
                              forkserver (light, torch)  -->  becomes every actor below

      data_worker/i   --LeaseRequest, SampleReady, SampleHandover-->  loader
      (fast, slow,    <--DataPlan, Lease----------------------------    |
       or remote)                                                       |
                                                                        |
      trainer/r       --BatchRequest-------------------------------->   |
         |            <--Batch---------------------------------------   |
         |                                                              |
         |            rollout/j  --PromptRequest-->  <--Prompts------   '
         |               |
         |               |  CodesRequest
         v               v
      optimizer_shard/k     <--Gradient, StepFacts, StepQuery--  trainer/r
                            --Update, Codes, StepNeeds-------->  trainer/r
                            --Codes--------------------------->  rollout/j
                            --ShardCommitted, CheckpointPart-->  optimizer_shard/0
                            --Metrics------------------------->  recorder  (MetricsRequest)

      everybody  --LogRecord-->  recorder     (may be lost, is counted, never blocks)
      rollout/j  --RolloutReport-->  recorder

A trainer of another host says and hears all that through its stand-in, which is trainer/r here:

      trainer/LABEL-0  --JoinRank, Beat, Forward-->  trainer/r  (standin/, tcp with keys)
                       <--RankPlan, Welcome, Forward, Stop--

Big tensors do not travel: gradients and updates lie in shared memory that the supervisor has made,
and messages say where. Who owns what, and so who may be killed at any moment:

      loader            the ledger (SQLite): which token went where
      optimizer_shard   master weights, moments, step: in shared memory and in checkpoints
      recorder          the log files and metrics.jsonl
      supervisor        the process table
      everybody else    nothing

Beside each file that acts lies the file that decides for it, without sockets, clocks or torch:

      supervisor/process.py   acts on   supervisor/supervision.py
      loop.py                 acts on   lifeline.py
      standin/process.py      acts on   standin/visit.py
      launcher.py             acts on   supervisor/rationing.py

The vocabulary is `protocol/messages.py`; how each process lives on the wire is `loop.py`; which
code plays which role is `roles.py`.
"""
