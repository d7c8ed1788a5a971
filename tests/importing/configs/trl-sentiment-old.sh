# PPO on IMDB as in TRL 0.9's examples/scripts/ppo.py
python examples/scripts/ppo.py \
    --log_with=wandb \
    --model_name=lvwerra/gpt2-imdb \
    --query_dataset=imdb \
    --reward_model=sentiment-analysis:lvwerra/distilbert-imdb \
    --learning_rate=1.41e-5 \
    --batch_size=128 --mini_batch_size=16 --gradient_accumulation_steps=2 \
    --ppo_epochs=4 \
    --init_kl_coef=0.2 --adap_kl_ctrl --target=6 --horizon=10000 \
    --early_stopping --target_kl=0.1 \
    --kl_penalty=mse \
    --use_score_norm \
    --use_peft \
    --max_cached_prompts=7 \
    --seed=0
