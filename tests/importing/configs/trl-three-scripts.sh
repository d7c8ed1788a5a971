#!/bin/bash
# TL;DR in three steps with TRL's example scripts, one 80 GB card
BASE=EleutherAI/pythia-1b-deduped
OUT=models/tldr

python examples/scripts/sft.py \
    --model_name_or_path $BASE \
    --dataset_name trl-lib/tldr \
    --learning_rate 2.0e-5 \
    --num_train_epochs 1 \
    --packing \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 8 \
    --gradient_checkpointing \
    --eval_strategy steps \
    --eval_steps 100 \
    --logging_steps 25 \
    --save_steps 200 \
    --report_to wandb \
    --output_dir ${OUT}-sft

accelerate launch --config_file configs/single_gpu.yaml examples/scripts/reward_modeling.py \
    --model_name_or_path ${OUT}-sft \
    --dataset_name trl-lib/tldr-preference \
    --output_dir ${OUT}-reward \
    --per_device_train_batch_size 8 \
    --num_train_epochs 1 \
    --gradient_checkpointing True \
    --learning_rate 1.0e-5 \
    --warmup_ratio 0.03 \
    --center_rewards_coefficient 0.01 \
    --max_length 2048

accelerate launch --config_file configs/deepspeed_zero2.yaml \
    examples/scripts/ppo/ppo_tldr.py \
    --dataset_name trl-lib/tldr \
    --dataset_test_split validation \
    --output_dir ${OUT}-ppo \
    --learning_rate 3e-6 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 4 \
    --total_episodes 1000000 \
    --model_name_or_path $BASE \
    --sft_model_path ${OUT}-sft \
    --reward_model_path ${OUT}-reward \
    --local_rollout_forward_batch_size 16 \
    --missing_eos_penalty 1.0 \
    --stop_token eos \
    --eval_strategy steps \
    --eval_steps 100 \
    --num_sample_generations 10 2>&1 | tee ppo.log
