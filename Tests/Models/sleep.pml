/* SPDX-License-Identifier: BSD-2-Clause
 * A queue's thread goes to sleep, and three others wake it: the frontend, a thread of the plugin, the control thread.
 *
 * What it stands for, checked by scripts/models.py:
 * @code Sources/Blkif/BackRing.swift publish finalCheck holdOffEvents hasNewRequests
 * @code Sources/Blkif/FrontRing.swift publish finalCheck
 * @code Sources/BlockQueue/Queue/QueueLoop.swift turn sleep takeEvents
 * @code Sources/BlockQueue/Queue/XenEffects.swift takeEvent unmask notify
 * @code Sources/BlockQueue/Queue/QueueThread.swift change takeControl pause resume
 * @code Sources/PluginPort/CompletionPort.swift complete pushRemote takeRemote prepareToSleep awoke wakeIfSleeping wake
 * @code Sources/PluginHost/PluginEvents.swift post runDue wait
 *
 * The event channel is that of Linux: an event that comes while the port is masked is pending, and comes when it is unmasked.
 * A processor may keep a store back behind later loads, so the backend's stores of `req_event` and `rsp_prod` pass through a
 * buffer, which a fence empties. The frontend's are shown at once. Indices wrap at 8.
 *
 * Checked: no wake-up is lost. If one is, all that are left sleep, which is an invalid end state.
 */
#ifndef REQUESTS
#define REQUESTS 2
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#define FIRST 7
#define M(x) ((x) & 7)
#define PASSED(new, old, event) (M((new) - (event)) < M((new) - (old)))

/* The ring's indices, and those that the backend's processor has not shown yet. */
byte req_prod = FIRST, req_event = M(FIRST + 1), rsp_prod = FIRST, rsp_event = M(FIRST + 1);
byte backEvent = M(FIRST + 1), backProd = FIRST;
/* The event channel: the backend's port and the frontend's. */
bool pending, masked, readable, frontPending;
/* The plugin's port: completions of other threads, requests that the plugin has. */
byte remote, given;
bool sleeping, eventfd;
/* What the control thread wants, and functions that the plugin posts: two. */
bool changed, wantsPause, paused, hasPosted, obeyed, over;
byte posted, called;

#ifdef E_NO_FENCE
#define FENCE skip
#else
#define FENCE req_event = backEvent; rsp_prod = backProd
#endif
#define FIRE if :: pending && !masked -> pending = false; masked = true; readable = true :: else fi

proctype Buffer() {
    do
    :: atomic { req_event != backEvent -> req_event = backEvent }
    :: atomic { rsp_prod != backProd -> rsp_prod = backProd }
    :: over -> break
    od
}

proctype Frontend() {
    byte sent, consumer = FIRST;
    do
    :: atomic { sent < REQUESTS && M(req_prod - consumer) < SLOTS -> req_prod = M(req_prod + 1); sent++ };
       atomic {
           if
           :: PASSED(req_prod, req_prod - 1, req_event) -> pending = true; FIRE
           :: else
           fi
       }
    :: atomic { rsp_prod != consumer -> consumer = M(consumer + 1) }
    :: consumer == M(FIRST + REQUESTS) -> break
    :: atomic {
           rsp_prod == consumer && (sent == REQUESTS || M(req_prod - consumer) == SLOTS) &&
           consumer != M(FIRST + REQUESTS) ->
           rsp_event = M(consumer + 1)
       };
       if
       :: rsp_prod != consumer
       :: else -> atomic { frontPending -> frontPending = false }
       fi
    od;
#ifdef POSTER
    called == 2;
#endif
#ifdef CONTROL
    obeyed;
#endif
    over = true
}

#ifdef POSTER
/* A thread of the plugin asks for calls on the queue's thread. */
proctype Poster() {
    do
    :: posted < 2 ->
        posted++;
        hasPosted = true;
#ifndef E_POST_SILENT
        eventfd = true
#endif
    :: else -> break
    od
}
#endif

#ifdef CONTROL
proctype Control() {
    wantsPause = true;
    changed = true;
    eventfd = true;
    if :: paused :: true fi;      /* who resumes need not wait for the pause */
    wantsPause = false;
#ifdef E_CONTROL_WAKES_FIRST
    eventfd = true;
    changed = true;
#else
    changed = true;
    eventfd = true;
#endif
    !paused;
    obeyed = true
}
#endif

/* A thread of the plugin completes requests in any order. */
proctype Plugin() {
    do
    :: atomic { given > 0 -> given--; remote++ };
#ifndef E_NO_WAKE
       atomic { if :: sleeping -> sleeping = false; eventfd = true :: else fi }
#endif
    :: over -> break
    od
}

proctype Queue() {
    byte consumer = FIRST, inFlight, done, old;
    bool worked, asks = true, isMasked, held;
    do
    :: over -> break
    :: else ->
#ifdef CONTROL
        /* QueueThread.takeControl */
        if
        :: changed ->
#ifdef E_CONTROL_CLEARED_LATE
            held = wantsPause;
            changed = false;
#else
            changed = false;
            held = wantsPause;
#endif
            atomic { if :: !held -> paused = false :: else fi }
        :: else
        fi;
#endif
        /* QueueEngine.turn */
        atomic {
            worked = false;
            if :: asks -> asks = false; backEvent = consumer :: else fi
        };
        atomic {
            done = remote; inFlight = inFlight - remote; remote = 0;
            worked = (done > 0)
        };
        atomic {
            do
            :: !held && req_prod != consumer -> consumer = M(consumer + 1); inFlight++; given++; worked = true
            :: else -> break
            od
        };
        if
        :: done > 0 ->
            atomic { old = backProd; backProd = M(backProd + done); done = 0 };
            atomic { FENCE };
            atomic {
                if :: PASSED(backProd, old, rsp_event) -> frontPending = true :: else fi;
                old = 0
            }
        :: else
        fi;
        if
        :: worked -> goto next
        :: else
        fi;
        /* QueueLoop.sleep */
#ifdef CONTROL
        atomic { if :: held && inFlight == 0 -> paused = true :: else fi };
#endif
#ifdef POSTER
        if
        :: hasPosted ->
#ifdef E_POSTED_CLEARED_LATE
            called = posted; hasPosted = false; goto next
#else
            hasPosted = false; called = posted; goto next
#endif
        :: else
        fi;
#endif
        if
        :: !held ->
            if :: req_prod != consumer -> goto next :: else fi;
            atomic { backEvent = M(consumer + 1); asks = true };
            atomic { FENCE };
#ifndef E_EVENT_AFTER_CHECK
            if :: req_prod != consumer -> goto next :: else fi;
#endif
#ifndef E_STAYS_MASKED
            atomic { if :: isMasked -> isMasked = false; masked = false; FIRE :: else fi }
#endif
        :: else
        fi;
#ifdef E_LOOKS_BEFORE_SLEEPING
        if :: remote > 0 -> goto next :: else fi;
        sleeping = true;
#else
        sleeping = true;
        if :: remote > 0 -> sleeping = false; goto next :: else fi;
#endif
        if :: changed -> sleeping = false; goto next :: else fi;
        if
        :: eventfd
        :: readable
        :: over -> break
        fi;
        /* Told once for each addition: nobody reads the counter. */
        eventfd = false;
        sleeping = false;
        atomic { if :: readable -> readable = false; isMasked = true :: else fi };
        next: skip
    od
}

init {
    atomic {
        run Buffer(); run Frontend(); run Plugin(); run Queue()
#ifdef CONTROL
        ; run Control()
#endif
#ifdef POSTER
        ; run Poster()
#endif
    }
}
