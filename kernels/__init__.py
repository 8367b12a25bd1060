"""The maths: functions of tensors and nn.Modules. No sockets, no files, none of our imports."""
