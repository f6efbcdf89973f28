"""Memory of the app and its two workers over a checkpoint, in MiB: `python tests/measure/app_memory.py [CHECKPOINT]`.

Counts what is shared between processes once (proportional set size), after each worker has generated. Without a checkpoint it
makes a random OLMoE of one layer (856 M parameters, 1,632 MiB in bf16).
"""

import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from campaigns.load import process_tree
from gradio_client import Client
from running import start_app


def make_olmoe(folder: str) -> str:
    """A random OLMoE of one layer, stored in bf16, in `folder`; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeConfig

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets/demo")
    config = OlmoeConfig(num_hidden_layers=1, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main():
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = sys.argv[1] if len(sys.argv) > 1 else make_olmoe(folder)
        url, app = start_app(ROOT, Path(folder, "log"), arguments=[checkpoint])
        try:
            client = Client(url, verbose=False)
            with ThreadPoolExecutor(2) as threads:
                for _ in range(3):  # the first may find one worker only
                    list(threads.map(lambda _: client.predict(prompt="Once", api_name="/generate"), range(2)))
            total = 0
            for pid in process_tree(app.pid):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                pss = int(re.search(r"Pss: +(\d+)", rollup)[1]) / 1024
                name = "worker" if b"worker_pool" in Path(f"/proc/{pid}/cmdline").read_bytes() else "app"
                print(f"{name} {pss:,.0f}")
                total += pss
            print(f"total {total:,.0f}")
        finally:
            app.terminate()
            app.wait(20)


if __name__ == "__main__":
    main()
