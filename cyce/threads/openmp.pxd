"""OpenMP as the account of threads needs it: pools, their ends, threads that end, threads on trial.

libgomp (GCC's runtime) keeps a pool of idle threads for each thread that called, and ends the process where
the system refuses it a thread. Other runtimes have one pool for all threads, take care of forks themselves,
and do without threads that cannot be had: for them, most of this is nothing.
"""

cdef extern from * nogil:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define CYCE_OPENMP 1
    #else
    #define CYCE_OPENMP 0
    #define omp_get_max_threads() 1
    #define omp_get_num_procs() 1
    #define omp_get_level() 0
    #endif

    /* Microsoft's compiler has OpenMP 2.0. */
    #if defined(_OPENMP) && _OPENMP < 200805
    #define omp_get_level() omp_in_parallel()
    #endif

    /* There are places since version 4.5. */
    #if !defined(_OPENMP) || _OPENMP < 201511
    #define omp_get_num_places() 0
    #define omp_get_place_num_procs(place) 0
    #define omp_get_place_proc_ids(place, ids) ((void) (ids))
    #endif

    #ifdef _WIN32
    #define cyce_at_fork(before, in_parent, in_child) 0
    #else
    #include <pthread.h>
    #define cyce_at_fork pthread_atfork
    #endif

    #if CYCE_OPENMP && defined(__GNUC__) && !defined(__clang__) && !defined(_WIN32)
    #define CYCE_LIBGOMP 1
    #else
    #define CYCE_LIBGOMP 0
    #endif

    #if CYCE_LIBGOMP
    #include <time.h>
    #define cyce_end_pool() (omp_pause_resource_all(omp_pause_soft) == 0)
    /* A mark on a thread, NULL on most. `on_exit` is called with the mark of a thread that ends. */
    static pthread_key_t cyce_key;
    #define cyce_create_mark(on_exit) pthread_key_create(&cyce_key, on_exit)
    #define cyce_set_mark(mark) pthread_setspecific(cyce_key, mark)
    #define cyce_mark() pthread_getspecific(cyce_key)
    static double cyce_now(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double) now.tv_sec + 1e-9 * (double) now.tv_nsec;
    }

    /* Before libgomp is to start threads, start as many here, all at a time, with the same stack size. */
    #include <ctype.h>
    #include <errno.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    typedef struct { pthread_t thread; pid_t number; pthread_mutex_t *until; } cyce_trial;

    static void *cyce_try(void *argument)
    {
        cyce_trial *trial = (cyce_trial *) argument;
    #ifdef SYS_gettid
        trial->number = (pid_t) syscall(SYS_gettid);
    #endif
        pthread_mutex_lock(trial->until);
        pthread_mutex_unlock(trial->until);
        return NULL;
    }

    /* The stack size that the environment asks for, in bytes; 0 if it does not. A number and B, K, M or G. */
    static size_t cyce_stack_size(void)
    {
        const char *text = getenv("OMP_STACKSIZE");
        char *end;
        unsigned long long size;
        int shift = 10;
        if (text == NULL)
            text = getenv("GOMP_STACKSIZE");
        if (text == NULL)
            return 0;
        errno = 0;
        size = strtoull(text, &end, 10);
        if (errno || end == text)
            return 0;
        while (isspace((unsigned char) *end))
            end++;
        switch (tolower((unsigned char) *end)) {
            case 'b': shift = 0; end++; break;
            case 'k': shift = 10; end++; break;
            case 'm': shift = 20; end++; break;
            case 'g': shift = 30; end++; break;
        }
        while (isspace((unsigned char) *end))
            end++;
        if (*end != '\\0')
            return 0;
        return size > ((size_t) -1 >> shift) ? (size_t) -1 : (size_t) size << shift;
    }

    static const unsigned long long CYCE_UNLIMITED = (unsigned long long) -1;
    static unsigned long long cyce_limit_of(int resource)
    {
        struct rlimit limit;
        if (getrlimit(resource, &limit) || limit.rlim_cur == RLIM_INFINITY)
            return CYCE_UNLIMITED;
        return (unsigned long long) limit.rlim_cur;
    }
    #ifdef RLIMIT_NPROC
    #define cyce_limit_of_threads() cyce_limit_of(RLIMIT_NPROC)
    #else
    #define cyce_limit_of_threads() CYCE_UNLIMITED
    #endif
    #define cyce_limit_of_memory() cyce_limit_of(RLIMIT_AS)

    /* How many of n threads can be started at once. */
    static int cyce_threads_to_be_had(int n, size_t stack_size)
    {
        pthread_mutex_t until = PTHREAD_MUTEX_INITIALIZER;
        /* Memory that libgomp needs for its team besides: some hundred bytes a thread. */
        const size_t n_bytes = 65536 + (size_t) n * 4096;
        cyce_trial *trials = (cyce_trial *) malloc((size_t) n * sizeof(cyce_trial));
        void *room;
        pthread_attr_t attributes;
        sigset_t all, found;
        int n_started = 0, k, turn;
        if (trials == NULL || pthread_attr_init(&attributes)) {
            free(trials);
            return 0;
        }
        if (stack_size > 0)
            (void) pthread_attr_setstacksize(&attributes, stack_size);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &found);
        pthread_mutex_lock(&until);
        while (n_started < n) {
            trials[n_started].number = 0;
            trials[n_started].until = &until;
            if (pthread_create(&trials[n_started].thread, &attributes, cyce_try, &trials[n_started]))
                break;
            n_started++;
        }
        room = malloc(n_bytes);
        pthread_mutex_unlock(&until);
        pthread_sigmask(SIG_SETMASK, &found, NULL);
        for (k = 0; k < n_started; k++)
            pthread_join(trials[k].thread, NULL);
    #ifdef SYS_tgkill
        /* A thread that was joined counts until the system has removed it. */
        for (k = 0; k < n_started; k++)
            for (turn = 0; turn < 10000; turn++) {
                if (syscall(SYS_tgkill, getpid(), trials[k].number, 0) != 0)
                    break;
                sched_yield();
            }
    #endif
        if (room == NULL)
            n_started = 0;
        free(room);
        free(trials);
        pthread_attr_destroy(&attributes);
        return n_started;
    }
    #else
    /* Other runtimes. */
    #define cyce_end_pool() 1
    #define cyce_create_mark(on_exit) ((void) (on_exit), 0)
    #define cyce_set_mark(mark) 0
    #define cyce_mark() NULL
    #define cyce_now() 0.0
    #define cyce_stack_size() 0
    #define CYCE_UNLIMITED 0ULL
    #define cyce_limit_of_threads() CYCE_UNLIMITED
    #define cyce_limit_of_memory() CYCE_UNLIMITED
    #define cyce_threads_to_be_had(n, stack_size) (n)
    #endif
    """
    const bint CYCE_OPENMP
    const bint CYCE_LIBGOMP
    int omp_get_max_threads()
    int omp_get_num_procs()
    int omp_get_level()
    int omp_get_num_places()
    int omp_get_place_num_procs(int place)
    void omp_get_place_proc_ids(int place, int* ids)
    int cyce_at_fork(void (*before)() noexcept nogil, void (*in_parent)() noexcept nogil,
                     void (*in_child)() noexcept nogil)
    bint cyce_end_pool()
    int cyce_create_mark(void (*on_exit)(void*) noexcept nogil)
    int cyce_set_mark(const void* mark)
    void* cyce_mark()
    double cyce_now()
    size_t cyce_stack_size()
    const unsigned long long CYCE_UNLIMITED
    unsigned long long cyce_limit_of_threads()
    unsigned long long cyce_limit_of_memory()
    int cyce_threads_to_be_had(int n, size_t stack_size)
