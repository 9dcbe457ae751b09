"""Makes a small sibling of a model: its tokenizer, embeddings and head, fewer layers, distilled.

DistillSpec (Zhou et al., ICLR 2024, arXiv 2310.08461): the student starts from layers of the
teacher and learns the teacher's distributions on text that the teacher and the student itself have
sampled. The result is an ordinary Hugging Face folder: an amateur for contrastive decoding, a draft
for speculative decoding, a small engine to switch to.

command   the options of ``divserve distill``; imports nothing heavy
settings  the options of a run
run       the course of a run: prepare, train, evaluate, write
teacher   loads a teacher and refuses what cannot be distilled
student   chooses and copies the layers, writes the folder
data      prompts: from a file, or written by the teacher
sampling  batched sampling, and the sequences that it yields
losses    the four divergences, and their gradient through the head in bounded memory
train     the training loop
evaluate  held-out KL, acceptance, agreement
state     the state of a run, and its checkpoint
report    REPORT.md, report.json, curve.svg
display   progress: a bar on a terminal, lines elsewhere
"""
