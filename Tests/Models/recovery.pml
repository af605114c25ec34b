/* SPDX-License-Identifier: BSD-2-Clause
 * A worker that is killed between any two of its stores, and its successors: docs/recovery.md, "Who writes what, and when".
 *
 * What it stands for, checked by scripts/models.py:
 * @code Sources/BlockQueue/Recovery/QueueJournal.swift take answer release
 * @code Sources/BlockQueue/Recovery/QueueRecovery.swift init isVisible adopt
 * @code Sources/BlockQueue/Recovery/QueueStart.swift start
 * @code Sources/BlockQueue/Engine/QueueEngine+Intake.swift takeRequests
 * @code Sources/BlockQueue/Engine/QueueEngine+Replay.swift replay
 * @code Sources/BlockQueue/Engine/QueueEngine+Steps.swift respond releaseAnswered
 * @code Sources/BlockQueue/Engine/QueueEngine+Turn.swift publish
 * @code Sources/Blkif/BackRing.swift available take putBack respond publish resume
 * @code Sources/BlockQueue/Queue/DrainRule.swift isOver
 *
 * One block of storage is shared by all queues. Requests are writes and flushes of it, chosen freely; the content of a block
 * is the number of the request that wrote it last. What the storage was given lands in any order, and whether the worker
 * lives or not; a dead worker's lock is free when nothing of it can land any more.
 *
 * Checked: a request that is never answered leaves the frontend waiting for ever (an invalid end state); the assertions say
 * the rest. Each -DE_... plants one error, which must be found.
 */
#ifndef QUEUES
#define QUEUES 1
#endif
#ifndef EACH            /* requests of a queue */
#define EACH 3
#endif
#ifndef KILLS           /* two: a successor is killed, too */
#define KILLS 2
#endif
#ifndef HANDOVERS
#define HANDOVERS 1
#endif
#define SLOTS 2         /* slots of a ring, and of the journal */
#define RSP 16          /* a slot of the ring holds request r, or RSP + r */
#define ALL (QUEUES * EACH)
#define S(q, n) ((q) * SLOTS + (n))
#define BIT(r) (1 << (r))

/* The guest's pages. Indices do not wrap here: Tests/BlkifTests has that. */
byte cell[QUEUES * SLOTS];
byte req_prod[QUEUES], rsp_prod[QUEUES], rsp_cons[QUEUES];

/* The journal. answer: 0, or 1 + the index of the response. */
byte j_taken[QUEUES];
byte j_number[QUEUES * SLOTS], j_answer[QUEUES * SLOTS], j_bytes[QUEUES * SLOTS];

/* The storage: what reads find and what a loss of power leaves; what this worker and a dead one gave it. */
byte content, durable;
bool isFlush[ALL + 1];
bool inFlight[ALL + 1], stale[ALL + 1], completed[ALL + 1];

/* What the frontend knows, as sets of requests. Request 0 is what the block held before. */
short acked = 1;
short ackedAtSend[ALL + 1];
short covered;          /* writes that an acknowledged flush covers */

byte kills, handovers, running, ends;
bool dying, leaving;

#define NOT_OLD(what, writes) \
    r_ = 1; \
    do :: r_ <= ALL -> \
          assert(!((writes & BIT(r_)) && !isFlush[r_] && (ackedAtSend[r_] & BIT(what)))); r_++ \
       :: else -> break od; r_ = 0

proctype Frontend(byte q) {
    byte sent, r, seen, r_;
    do
    :: sent < EACH && req_prod[q] - rsp_cons[q] < SLOTS ->
        atomic {
            sent++;
            r = q * EACH + sent;
            if :: isFlush[r] = false :: isFlush[r] = true fi;
            ackedAtSend[r] = acked;
            cell[S(q, req_prod[q] % SLOTS)] = r;
            req_prod[q]++;
            r = 0
        }
    :: rsp_cons[q] < rsp_prod[q] ->
        atomic {
            seen = cell[S(q, rsp_cons[q] % SLOTS)];
            assert(seen > RSP);                       /* a response is there */
            seen = seen - RSP;
            assert(!(acked & BIT(seen)));             /* not answered twice */
            acked = acked | BIT(seen);
            rsp_cons[q]++;
            if
            :: isFlush[seen] -> covered = covered | ackedAtSend[seen]
            :: else -> skip
            fi;
            NOT_OLD(content, acked);                  /* an acknowledged write is there */
            NOT_OLD(durable, covered);                /* an acknowledged flush covers */
            seen = 0
        }
    :: rsp_cons[q] == EACH -> break
    od;
    ends++
}

proctype Storage() {
    byte r, r_;
    do
    :: atomic { ends == QUEUES -> break }
    :: atomic {
        select(r : 1 .. ALL);
        if
        :: inFlight[r] -> inFlight[r] = false; completed[r] = true
        :: stale[r] -> stale[r] = false
        :: else -> goto next
        fi;
        if
        :: isFlush[r] -> durable = content; NOT_OLD(durable, covered)
        :: else -> content = r; NOT_OLD(content, acked)   /* no older write comes back */
        fi;
        next: r = 0
      }
    od
}

/* A queue of the worker that serves now. */
#define ANSWER_SEEN (j_answer[S(q, i)] != 0 && j_answer[S(q, i)] - 1 < prod)
#define FREE 0
#define REPLAY 1
#define READY 2
#define GIVEN 3
#define ANSWERED 4
#define IDLE (state[0] == FREE && state[1] == FREE)

proctype Queue(byte q) {
    byte state[SLOTS];
#ifdef E_JOURNAL_LATE
    byte number[SLOTS];
#endif
    byte consumer, prod, i, found, low;
life:
    if
    :: atomic { !dying && !leaving && ends < QUEUES -> running++ }
    :: ends == QUEUES -> goto off
    fi;
    {
        /* QueueRecovery.init(reading:): nothing is stored */
        d_step {
            consumer = j_taken[q];
            prod = rsp_prod[q];
            found = 0;
            i = 0;
            do
            :: i < SLOTS ->
                if
                :: j_number[S(q, i)] == 0 || j_number[S(q, i)] == consumer + 1 -> state[i] = FREE
#ifndef E_REPLAY_ALL
                :: j_number[S(q, i)] != 0 && j_number[S(q, i)] != consumer + 1 && ANSWER_SEEN -> state[i] = FREE
#endif
                :: else -> state[i] = REPLAY; found++
                fi;
                i++
            :: else -> break
            od;
            i = 0
        }
#ifdef E_NO_JOURNAL
        d_step { consumer = prod; state[0] = FREE; state[1] = FREE; found = 0 }
#else
        assert(found == consumer - prod);             /* or the disk is closed: requests in flight are lost */
#endif
        found = 0;
        /* adopt: each store may be the last */
        do
        :: i < SLOTS && state[i] != REPLAY -> j_number[S(q, i)] = 0; i++
#ifdef E_ANSWER_KEPT
        :: i < SLOTS && state[i] == REPLAY -> i++
#else
        :: i < SLOTS && state[i] == REPLAY -> j_answer[S(q, i)] = 0; i++
#endif
        :: i == SLOTS -> i = 0; break
        od;
        do
        /* replay: in the order in which they were taken */
        :: state[0] == REPLAY && (state[1] != REPLAY || j_number[S(q, 0)] < j_number[S(q, 1)]) -> state[0] = READY
        :: state[1] == REPLAY && (state[0] != REPLAY || j_number[S(q, 1)] < j_number[S(q, 0)]) -> state[1] = READY
        /* take */
        :: atomic {
            state[0] != REPLAY && state[1] != REPLAY && !leaving && consumer < req_prod[q] &&
            consumer - prod < SLOTS && (state[0] == FREE || state[1] == FREE) ->
            i = (state[0] == FREE -> 0 : 1);
            assert(cell[S(q, consumer % SLOTS)] < RSP);   /* a response took the place of a request that is not known */
            j_bytes[S(q, i)] = cell[S(q, consumer % SLOTS)]
          };
          j_answer[S(q, i)] = 0;
          consumer++;
#if defined(E_JOURNAL_LATE)
          number[i] = consumer;
#elif defined(E_TAKEN_FIRST)
          j_taken[q] = consumer;
          j_number[S(q, i)] = consumer;
#elif defined(E_NO_NUMBER)
          j_taken[q] = consumer;
#else
          j_number[S(q, i)] = consumer;
          j_taken[q] = consumer;
#endif
          atomic { state[i] = READY; i = 0 }
        /* submit */
        :: atomic { state[0] == READY -> state[0] = GIVEN; completed[j_bytes[S(q, 0)]] = false; inFlight[j_bytes[S(q, 0)]] = true }
        :: atomic { state[1] == READY -> state[1] = GIVEN; completed[j_bytes[S(q, 1)]] = false; inFlight[j_bytes[S(q, 1)]] = true }
        /* respond: the journal, then the ring */
#ifdef E_ANSWER_EARLY
#define DONE(n) (state[n] == GIVEN)
#else
#define DONE(n) (state[n] == GIVEN && completed[j_bytes[S(q, n)]])
#endif
        :: atomic { (DONE(0) || DONE(1)) ->
                    if :: DONE(0) -> i = 0 :: DONE(1) -> i = 1 fi }
#ifdef E_JOURNAL_LATE
           d_step { j_number[S(q, i)] = number[i]; j_taken[q] = consumer };
#endif
#ifndef E_NO_ANSWER
           j_answer[S(q, i)] = prod + 1;
#endif
#ifdef E_RELEASE_FIRST
           j_number[S(q, i)] = 0;
#endif
           cell[S(q, prod % SLOTS)] = RSP + j_bytes[S(q, i)];
           atomic { completed[j_bytes[S(q, i)]] = false; prod++; state[i] = ANSWERED; i = 0 }
        /* publish, then release */
        :: prod > rsp_prod[q] ->
           rsp_prod[q] = prod;
           do
           :: state[0] == ANSWERED -> j_number[S(q, 0)] = 0; state[0] = FREE
           :: state[1] == ANSWERED -> j_number[S(q, 1)] = 0; state[1] = FREE
           :: state[0] != ANSWERED && state[1] != ANSWERED -> break
           od
        /* a planned hand-over: nothing is on its way any more */
#ifdef E_LEAVES_EARLY
        :: leaving -> break
#else
        :: leaving && IDLE -> break
#endif
        :: ends == QUEUES -> goto over
        od
    } unless { dying };
    atomic {
        state[0] = FREE; state[1] = FREE;
        consumer = 0; prod = 0; i = 0; found = 0;
        running--
    };
    goto life;
over:
    running--;
off:
    skip
}

/* Kills the worker at any time, or has it hand over; lets a successor begin when the lock is free. */
proctype Supervisor() {
    byte r;
    do
    :: atomic { kills < KILLS && running > 0 && !dying && ends < QUEUES -> kills++; dying = true; goto gone }
    :: atomic { handovers < HANDOVERS && running == QUEUES && !leaving && ends < QUEUES -> handovers++; leaving = true }
    :: atomic { leaving && !dying && running == 0 -> goto gone }
    :: atomic { ends == QUEUES -> break }
    gone:
      atomic {
        running == 0;
        for (r : 1 .. ALL) {
            completed[r] = false;
            if :: inFlight[r] -> inFlight[r] = false; stale[r] = true :: else -> skip fi
        }
        r = 0
      };
      /* The kernel lets the lock go when what was given to the storage has landed or never will. */
#ifndef E_NO_FENCE
      if
      :: leaving && !dying
      :: else ->
          r = 1;
          do
          :: r <= ALL && !stale[r] -> r++
          :: r <= ALL && stale[r] -> stale[r] = false; r++     /* never did */
          :: r > ALL -> break
          od;
          r = 0
      fi;
#endif
      atomic { dying = false; leaving = false }
    od
}

init {
    byte q;
    atomic {
        for (q : 0 .. QUEUES - 1) { run Frontend(q); run Queue(q) }
        run Storage();
        run Supervisor()
    }
}
