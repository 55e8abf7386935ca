"""Which instruction-set levels this CPU and its operating system run.

A module of its own, compiled for the baseline: code compiled for a level may use that level's
instructions anywhere, so a level's module cannot be asked whether it can run.
"""

cdef extern from * nogil:
    """
    #if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    #include <cpuid.h>
    /* __builtin_cpu_supports does not know it before GCC 11. */
    static int cyce_has_f16c(void)
    {
        unsigned int a, b, c, d;
        return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    }
    /* the features that setup.py lets the compiler use, by level */
    static int cyce_runs_x86_64_v3(void)
    {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cyce_has_f16c()
            && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    }
    static int cyce_runs_x86_64_v4(void)
    {
        return cyce_runs_x86_64_v3()
            && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int cyce_runs_x86_64_v3(void) { return 0; }
    static int cyce_runs_x86_64_v4(void) { return 0; }
    #endif
    """
    bint cyce_runs_x86_64_v3()
    bint cyce_runs_x86_64_v4()

cdef extern from "cyce_build.h":
    const char* CYCE_LEFT_OUT


def runnable_levels():
    """Levels that this CPU runs, from the most general to the fastest."""
    levels = ["baseline"]
    if cyce_runs_x86_64_v3():
        levels.append("x86_64_v3")
    if cyce_runs_x86_64_v4():
        levels.append("x86_64_v4")
    return tuple(levels)


def left_out():
    """What this build lacks, levels or "openmp", and why: a dict of str."""
    return dict(line.split("\t") for line in CYCE_LEFT_OUT.decode().splitlines())
