"""The maths: functions of tensors and nn.Modules. No sockets, no files, nothing of ours imported."""
