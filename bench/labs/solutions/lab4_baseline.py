"""Lab 4: the others of the group are the bar."""


def advantages(r, group):
    r = r.view(-1, group)
    others = (r.sum(1, keepdim=True) - r) / (group - 1)
    return (r - others).flatten()
