"""Where untrusted programs run. `base` says what a sandbox is; `probe.open_sandbox` opens the best one of this machine.

=========  =====================================================================  ======================================
tier       what stands between a program and this machine                         modules
=========  =====================================================================  ======================================
ns         namespaces, Landlock, seccomp, limits; a process for each run          launcher, zygote
lsm        Landlock, seccomp, limits; a process for each run                      launcher, zygote
bwrap      namespaces and limits, by bubblewrap; for other languages              bwrap
interp     a Python interpreter without a system, for calls; on any system        interp
remote     somebody else's sandbox, by HTTP                                       remote
unsafe     limits only                                                            unsafe
=========  =====================================================================  ======================================

What runs inside is guest; session is its other end; values are what crosses. What the Linux tiers do not cover stands
in zygote's header.
"""
