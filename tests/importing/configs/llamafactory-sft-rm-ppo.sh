# three YAML files, one after the other
llamafactory-cli train llamafactory-parts/llama3_lora_sft.yaml
llamafactory-cli train llamafactory-parts/llama3_lora_reward.yaml learning_rate=5.0e-5
llamafactory-cli train llamafactory-parts/llama3_lora_ppo.yaml
