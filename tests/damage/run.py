"""The program on damaged and on unusual files, through its command line: run.py BUILD [PART OF A NAME]

Every damaged file must be refused with one short line that says what is wrong where, within 10 seconds and 2 GiB, and every
sound directory, however unusual, must give its answer. AWQ_DAMAGE_PATIENCE=5 allows five times as long (for sanitizers).
"""
import os, shutil, sys, tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fixture
import config_kinds, gguf_kinds, picture_kinds, text_kinds, unusual_kinds, weight_kinds


def main():
    awq, wanted = os.path.abspath(os.path.join(sys.argv[1], "awq")), sys.argv[2] if len(sys.argv) > 2 else ""
    work = tempfile.mkdtemp(prefix="awq-damage-")
    try:
        models = fixture.Models(work)
        cases = [case for kinds in (weight_kinds, config_kinds, text_kinds, picture_kinds, gguf_kinds, unusual_kinds)
                 for case in kinds.cases()]
        with open("tests/damage/messages.txt", encoding="utf-8") as file:
            messages = dict(line.rstrip("\n").split("\t") for line in file if not line.startswith("#"))
        names = [case.name for case in cases]
        assert not set(messages) - set(names), set(messages) - set(names)
        for case in cases:
            if case.name in messages and case.answer is None:
                case.parts = case.parts + [messages[case.name]]
            elif case.name in messages:
                case.answer = messages[case.name]
        assert len(set(names)) == len(names), sorted(name for name in set(names) if names.count(name) > 1)
        refused = accepted = failed = 0
        slowest, largest, sound = (0, ""), (0, ""), {}
        for case in cases:
            if wanted not in case.name:
                continue
            key = (case.model, tuple(case.command), case.stdin)
            if case.parts is None and case.answer is None and key not in sound:
                sound[key] = fixture.run(awq, case.command, models.path(case.model), case.stdin)
                assert sound[key].status == 0, (case.name, sound[key].err)
            copy = os.path.join(work, "copy")
            shutil.copytree(models.path(case.model), copy)
            try:
                try:
                    case.spoil(fixture.Directory(copy))
                except Exception as error:
                    raise AssertionError(case.name) from error
                outcome = fixture.run(awq, case.command, copy, case.stdin)
            finally:
                shutil.rmtree(copy)
            problem = fixture.complaint(case, outcome, sound.get(key))
            if problem:
                failed += 1
                print("damage: %s: %s" % (case.name, problem), file=sys.stderr)
            elif case.parts is None:
                accepted += 1
            else:
                refused += 1
            slowest, largest = max(slowest, (outcome.seconds, case.name)), max(largest, (outcome.bytes, case.name))
        print("damage: %d kinds refused, %d answered, %d failed; at most %.2f s (%s) and %d MiB (%s)" %
              (refused, accepted, failed, slowest[0], slowest[1], largest[0] >> 20, largest[1]))
        return 1 if failed else 0
    finally:
        shutil.rmtree(work, ignore_errors=True)


sys.exit(main())
