"""What travels between Trireme's processes: messages, tensors, channels. No torch, no policy."""
