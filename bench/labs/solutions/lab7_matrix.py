"""Lab 7: recall says what was learnt, ACC what is left of it."""


def bwt(R):
    past = range(len(R) - 1)
    return sum(R[-1][j] - R[j][j] for j in past) / len(past)


def read_life(R):
    recall = sum(R[i][i] for i in range(len(R))) / len(R)
    left = sum(R[-1]) / len(R)
    if recall < 0.1:
        return "never learns"
    return "forgets" if left < recall / 2 else "remembers"
