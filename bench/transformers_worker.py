"""Generates greedily with transformers: GPT2LMHeadModel.generate, with its KV cache."""

import time

import torch
import transformers

from bench import common


def main():
    job = common.read_job()
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.GPT2LMHeadModel.from_pretrained(job["folder"], dtype=getattr(torch, job["weights"])).eval()

    def generate(prompt, new):
        prompt = torch.from_numpy(prompt)
        options = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "use_cache": True}
        start = time.perf_counter()
        # eos_token_id=None: always generate all tokens.
        out = model.generate(prompt, max_new_tokens=new, do_sample=False, eos_token_id=None, **options)
        return time.perf_counter() - start, out[:, prompt.shape[1] :].numpy()

    seconds, tokens = common.time_cases(generate, job)
    common.answer([torch, transformers], seconds=seconds, tokens=tokens)


if __name__ == "__main__":
    main()
