"""Training: engines, the loop, launching on Ray Train, and the stages pretrain, finetune and search."""
