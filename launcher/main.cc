#include "launcher/command_line.h"

int main(int argc, char** argv) { return phalanx::launcher::RunCommandLine(argc, argv, {}); }
