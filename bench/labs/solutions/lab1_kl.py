"""Lab 1: the direction is whose words are weighed."""


def forward_kl(log_t, log_s):
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def reverse_kl(log_t, log_s):
    return (log_s.exp() * (log_s - log_t)).sum(-1)
