"""Other trainers, with our credit in their loss (`trl`, `verl`) or our record of their runs (`trl.RunRecorder`)."""
