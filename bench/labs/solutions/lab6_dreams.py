"""Lab 6: cosine x truth, and what has been said already is worth less (dream.choose)."""
import torch


def choose(gradients, aim, true, words, k):
    score = torch.where(true, torch.cosine_similarity(gradients, aim[None]), -1.0).tolist()
    taken, seen = [], set()
    for _ in range(k):
        def worth(i):
            return score[i] * len(words[i] - seen) / len(words[i]) if score[i] > 0 else score[i]
        best = max((i for i in range(len(score)) if i not in taken), key=worth)
        taken.append(best)
        seen |= words[best]
    return taken
