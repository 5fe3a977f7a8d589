"""`zerofleet plan`: a job's sizes on given hardware, in numbers and in words."""
