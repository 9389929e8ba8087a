"""`bgrpo bench rollouts`: our decoding beside other engines, the floor of the machine, and peak memory."""
